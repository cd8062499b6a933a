"""Reports of finished runs: one HTML page that needs no network, and Markdown with plots."""
