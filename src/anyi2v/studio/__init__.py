"""`anyi2v studio`: a browser page for drawing tracks and running jobs; see docs/studio.md.

Only the modules `page`, `wiring`, `image_events`, `run_events` and `server` depend on gradio; everything else is plain
functions, tested without a browser.
"""
