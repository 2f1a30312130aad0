"""`/docs`: the API's description as a page of its own. It loads nothing but `/openapi.json`, so it works offline."""

from typing import Final

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_POLICY: Final = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Ostiary API</title>
<style>
  :root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
  body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
  h2 { margin: 2rem 0 .5rem; text-transform: capitalize }
  details { border-top: 1px solid #8884; padding: .4rem 0 }
  summary { cursor: pointer }
  code, pre { font: 13px/1.45 ui-monospace, monospace }
  pre { overflow: auto; padding: .7rem; background: #8881 }
  .verb { display: inline-block; width: 4.5rem; font-weight: 700 }
  table { border-collapse: collapse; margin: .5rem 0 }
  td, th { border: 1px solid #8884; padding: .2rem .6rem; text-align: left; vertical-align: top }
</style>
<h1>Ostiary API</h1>
<p>Send a token as <code>Authorization: Bearer ost_…</code>. The machine-readable description is
<a href="openapi.json">openapi.json</a>.</p>
<main id="main">Loading…</main>
<script>
const make = (tag, text, ...children) => {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
};
const shape = (schema, all, depth = 0) => {
  if (!schema || depth > 6) return '…';
  if (schema.$ref) return shape(all[schema.$ref.split('/').pop()], all, depth + 1);
  const several = schema.anyOf || schema.oneOf || schema.allOf;
  if (several) return several.map(one => shape(one, all, depth)).map(
    one => typeof one === 'string' ? one : JSON.stringify(one)).join(' | ');
  if (schema.type === 'array') return [shape(schema.items, all, depth + 1)];
  if (schema.properties) return Object.fromEntries(
    Object.entries(schema.properties).map(([name, one]) => [name, shape(one, all, depth + 1)]));
  return schema.enum ? schema.enum.join(' | ') : schema.format || schema.type || 'any';
};
const block = (title, schema, all) =>
  [make('p', title), make('pre', JSON.stringify(shape(schema, all), null, 2))];
fetch('openapi.json').then(answer => answer.json()).then(api => {
  const all = (api.components || {}).schemas || {}, groups = {};
  for (const [path, verbs] of Object.entries(api.paths))
    for (const [verb, operation] of Object.entries(verbs)) {
      const about = make('details', '', make('summary', '',
        Object.assign(make('span', verb.toUpperCase()), {className: 'verb'}), make('code', path)));
      about.append(make('p', operation.description || operation.summary));
      if (operation.parameters) {
        const table = make('table', '', make('tr', '', ...['parameter', 'in', 'type', ''].map(t => make('th', t))));
        for (const p of operation.parameters)
          table.append(make('tr', '', make('td', p.name), make('td', p.in),
            make('td', String(shape(p.schema, all))), make('td', p.description || '')));
        about.append(table);
      }
      const body = ((operation.requestBody || {}).content || {})['application/json'];
      if (body) about.append(...block('Body', body.schema, all));
      for (const [status, answer] of Object.entries(operation.responses || {})) {
        const content = (answer.content || {})['application/json'];
        if (content && status < 400) about.append(...block('Answer ' + status, content.schema, all));
      }
      (groups[(operation.tags || ['other'])[0]] ||= []).push(about);
    }
  document.getElementById('main').replaceChildren(
    ...Object.entries(groups).flatMap(([tag, list]) => [make('h2', tag), ...list]));
}).catch(error => { document.getElementById('main').textContent = 'openapi.json could not be read: ' + error });
</script>
</html>
"""


@router.get("/docs", response_class=HTMLResponse)
async def docs() -> HTMLResponse:
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})
