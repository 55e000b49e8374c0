"""`anyi2v studio`: a browser page for drawing tracks and running jobs; see docs/studio.md.

Only `page`, `wiring` and `server` depend on gradio; everything else is plain functions, tested without a browser.
"""
