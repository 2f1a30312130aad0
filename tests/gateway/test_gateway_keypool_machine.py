"""The key pool against a simple account of what happened, among two workers that tell each other late, twice or in any order.

The account keeps every limit, refusal and recovery that a worker knows of, and derives from all of them what holds now.
"""

from typing import NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from ostiary.core.health import KeyReport
from ostiary.core.secret import Secret
from ostiary.gateway.key_verdict import Verdict
from ostiary.gateway.keypool import Chosen, Exhausted, KeyPool
from ostiary.gateway.providers import RuntimeKey

KEYS = tuple(RuntimeKey(str(number), Secret(f"sk-{number}-0123456789abcdef"), b"") for number in range(4))
MODELS = ("gpt-5", "gpt-5-mini")
WORKERS = (0, 1)
HOUR = 3600

keys = st.sampled_from(KEYS)
models = st.sampled_from(MODELS)
workers = st.sampled_from(WORKERS)


class Limit(NamedTuple):
    digest: bytes
    model: str
    until: int


class Refusal(NamedTuple):
    digest: bytes
    at: int
    until: int
    strikes: int


class Recovery(NamedTuple):
    digest: bytes
    at: int


Fact = Limit | Refusal | Recovery


def back_off(strikes: int) -> int:
    return min(60 * 2 ** (strikes - 1), HOUR)


def fact_of(report: KeyReport) -> Fact:
    if report.state == "cooling":
        return Limit(report.key_sha256, report.model, int(report.until))
    if report.state == "suspect":
        until = int(report.until)
        return Refusal(report.key_sha256, until - back_off(report.strikes), until, report.strikes)
    return Recovery(report.key_sha256, int(report.until))


class Account:
    """What one worker knows."""

    def __init__(self) -> None:
        self.facts: set[Fact] = set()
        self.asked: dict[bytes, int] = {}

    def refusal(self, digest: bytes) -> Refusal | None:
        """The one that makes it suspect."""
        refusals = [fact for fact in self.facts if isinstance(fact, Refusal) and fact.digest == digest]
        recoveries = [fact.at for fact in self.facts if isinstance(fact, Recovery) and fact.digest == digest]
        last = max(refusals, key=lambda fact: fact[1:], default=None)
        return last if last is not None and last.at >= max(recoveries, default=-1) else None

    def cools_until(self, digest: bytes, model: str) -> int:
        return max(
            (f.until for f in self.facts if isinstance(f, Limit) and f.digest == digest and f.model in ("", model)),
            default=-1,
        )

    def verdict(self, key: RuntimeKey, kind: str, wait: int, model: str, now: int) -> list[Fact]:
        """What is new by an answer."""
        digest = key.digest
        refusal = self.refusal(digest)
        if kind == "refused":
            if refusal is not None and now < refusal.until:
                return []
            strikes = refusal.strikes + 1 if refusal is not None else 1
            return [Refusal(digest, now, now + back_off(strikes), strikes)]
        news: list[Fact] = []
        if refusal is not None and now >= refusal.until:
            news.append(Recovery(digest, now))
        model = model if kind == "rate_limited" else ""
        known = max((f.until for f in self.facts if isinstance(f, Limit) and f[:2] == (digest, model)), default=-1)
        if now + wait > known:
            news.append(Limit(digest, model, now + wait))
        return news


class TwoWorkers(RuleBasedStateMachine):
    mail = Bundle("mail")

    @initialize(start=st.sampled_from([0, 1, 10**7]), selection=st.sampled_from(["primary", "spread"]))
    def begin(self, start: int, selection: str) -> None:
        self.now = start
        self.selection = selection
        self.pools = [KeyPool("openai", KEYS[:3], selection) for _ in WORKERS]  # type: ignore[arg-type]
        self.accounts = [Account() for _ in WORKERS]
        self.sent: list[KeyReport] = []

    def heed(self, worker: int, reports: tuple[KeyReport, ...], news: list[Fact]) -> list[KeyReport]:
        """The pool must tell what the account says is new, and nothing else."""
        assert [fact_of(report) for report in reports] == news
        self.accounts[worker].facts.update(news)
        self.sent.extend(reports)
        return list(reports)

    @rule(seconds=st.sampled_from([0, 0, 1, 2, 20, 59, 60, 61, 600, HOUR, 400 * 86_400]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(
        worker=workers,
        key=keys,
        model=models,
        kind=st.sampled_from(["rate_limited", "quota", "refused"]),
        long=st.booleans(),
    )
    def answer(self, worker: int, key: RuntimeKey, model: str, kind: str, long: bool) -> None:
        """Of any request, also of one that is long under way."""
        pool, seconds = self.pools[worker], HOUR if long else 20
        reports = pool.mark(key, Verdict(kind, float(seconds)), model, self.now, 0.0)  # type: ignore[arg-type]
        known = any(key.digest == ours.digest for ours in pool.keys)
        self.heed(worker, reports, self.accounts[worker].verdict(key, kind, seconds, model, self.now) if known else [])

    @rule(
        worker=workers,
        model=models,
        session=st.sampled_from(["", "s", "t"]),
        tried=st.sets(keys.map(lambda key: key.digest), max_size=3),
        outcome=st.sampled_from(["passed", "refused", "nothing"]),
    )
    def request(self, worker: int, model: str, session: str, tried: set[bytes], outcome: str) -> None:
        pool, account, now = self.pools[worker], self.accounts[worker], self.now
        choice = pool.choose(model, now, session, tried)
        for key in pool.keys:
            refusal = account.refusal(key.digest)
            cooled = account.cools_until(key.digest, model) <= now
            asked = now < account.asked.get(key.digest, -2) + 1
            usable = cooled and refusal is None
            triable = cooled and refusal is not None and refusal.until <= now and not asked
            if isinstance(choice, Chosen) and key is choice.key:
                assert key.digest not in tried
                assert triable if choice.needs_trial else usable, "used before its deadline"
            elif isinstance(choice, Exhausted) and key.digest not in tried:
                assert not usable, "a key is left out"
                assert not triable, "a key is lost"
            elif key.digest not in tried and self.selection == "primary" and not choice.needs_trial:
                assert not usable or pool.keys.index(choice.key) < pool.keys.index(key), "the order is not kept"
                assert not triable, "it is not tried when it might be"
        if isinstance(choice, Exhausted):
            waits = [
                account.cools_until(key.digest, model) - now
                for key in pool.keys
                if account.refusal(key.digest) is None and account.cools_until(key.digest, model) > now
            ]
            over = any(key.digest in tried and account.refusal(key.digest) is None for key in pool.keys)
            expected = ("rate_limited", min(waits) if waits else 1) if waits or over else ("auth_failed", 0)
            assert (choice.kind, choice.retry_after) == expected
            return
        if choice.needs_trial:
            account.asked[choice.key.digest] = now
            if outcome == "passed":
                reports = pool.recovered(choice.key, now, 0.0)
                self.heed(worker, reports, [Recovery(choice.key.digest, now)])
            elif outcome == "refused":
                reports = pool.mark(choice.key, Verdict("refused"), model, now, 0.0)
                self.heed(worker, reports, account.verdict(choice.key, "refused", 0, model, now))

    @rule(worker=workers)
    def sweep(self, worker: int) -> None:
        self.pools[worker].sweep(self.now)

    @rule(target=mail, number=st.integers(0, 50))
    def post(self, number: int) -> KeyReport | None:
        return self.sent[number % len(self.sent)] if self.sent else None

    @rule(worker=workers, report=consumes(mail))
    def deliver(self, worker: int, report: KeyReport | None) -> None:
        if report is not None:
            self.pools[worker].apply(report, self.now)
            if any(report.key_sha256 == key.digest for key in self.pools[worker].keys):
                self.accounts[worker].facts.add(fact_of(report))

    @rule(worker=workers, order=st.permutations(KEYS), count=st.integers(1, 4))
    def reload(self, worker: int, order: list[RuntimeKey], count: int) -> None:
        kept = tuple(order[:count])
        self.pools[worker] = KeyPool("openai", kept, self.selection, self.pools[worker])  # type: ignore[arg-type]
        account, digests = self.accounts[worker], {key.digest for key in kept}
        account.facts = {fact for fact in account.facts if fact.digest in digests}
        account.asked = {digest: at for digest, at in account.asked.items() if digest in digests}

    @invariant()
    def a_pool_that_calls_itself_healthy_is(self) -> None:
        if not hasattr(self, "pools"):
            return
        for pool, account in zip(self.pools, self.accounts, strict=True):
            if pool.healthy:
                key = pool.keys[0]
                assert self.selection == "primary"
                assert account.refusal(key.digest) is None
                assert all(account.cools_until(key.digest, model) <= self.now for model in MODELS)

    def teardown(self) -> None:
        """When all that was found has come to both, they agree; and in the end every key is there again."""
        if not hasattr(self, "pools"):
            return
        told = [KeyPool("openai", KEYS, "primary") for _ in WORKERS]
        for report in self.sent:
            told[0].apply(report, self.now)
        for report in (*reversed(self.sent), *self.sent):
            told[1].apply(report, self.now)
        assert self.standing(told[0]) == self.standing(told[1])
        later = self.now + HOUR
        for pool in (*told, *self.pools):
            for key in pool.keys:
                others = {other.digest for other in pool.keys if other is not key}
                choice = pool.choose(MODELS[0], later, tried=others)
                assert isinstance(choice, Chosen), "a key is lost for good"
                assert choice.key is key

    def standing(self, pool: KeyPool) -> set[tuple[object, ...]]:
        return {
            (report.key_sha256, report.state, report.model, report.until, report.strikes)
            for report in pool.reports(self.now)
        }


TestTwoWorkers = TwoWorkers.TestCase
TestTwoWorkers.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


times = st.integers(1000, 1000 + HOUR)
ends = st.integers(1000, 1000 + 2 * HOUR)
digests = st.sampled_from([key.digest for key in KEYS[:2]])
facts = st.lists(
    st.builds(lambda digest, model, until: Limit(digest, model, until), digests, st.sampled_from(["", *MODELS]), ends)
    | st.builds(lambda digest, at, n: Refusal(digest, at, at + back_off(n), n), digests, times, st.integers(1, 7))
    | st.builds(Recovery, digests, times),
    max_size=8,
)


def report_of(fact: Fact) -> KeyReport:
    if isinstance(fact, Limit):
        reason = "rate_limited" if fact.model else "quota"
        return KeyReport("openai", fact.digest, "cooling", reason, fact.model, float(fact.until))  # type: ignore[arg-type]
    if isinstance(fact, Refusal):
        return KeyReport("openai", fact.digest, "suspect", "refused", "", float(fact.until), fact.strikes)
    return KeyReport("openai", fact.digest, "usable", "recovered", "", float(fact.at))


@given(facts, st.data(), st.integers(0, 2 * HOUR))
def test_reports_in_any_order_and_doubled_come_to_the_same(known: list[Fact], data: st.DataObject, later: int) -> None:
    now = 1000 + HOUR
    account = Account()
    account.facts = set(known)
    pool = KeyPool("openai", KEYS[:2], "primary")
    for fact in data.draw(st.permutations(known + known[::2])):
        pool.apply(report_of(fact), now)
    now += later
    for key, other in (KEYS[:2], KEYS[1::-1]):
        refusal = account.refusal(key.digest)
        for model in MODELS:
            choice = pool.choose(model, now, tried={other.digest})
            waits = account.cools_until(key.digest, model) > now or (refusal is not None and refusal.until > now)
            assert isinstance(choice, Exhausted if waits else Chosen)
            if isinstance(choice, Chosen):
                assert choice.needs_trial is (refusal is not None)
                pool = KeyPool("openai", KEYS[:2], "primary")  # a trial is proposed once in a while only
                for fact in known:
                    pool.apply(report_of(fact), now)
