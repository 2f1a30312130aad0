"""Routes, authorisation and edits of each kind of provider."""
