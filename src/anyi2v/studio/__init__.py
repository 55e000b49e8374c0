"""`anyi2v studio`: a page in the browser on which tracks are drawn and jobs are run; see docs/studio.md.

`page`, `wiring` and `server` alone know gradio; all else is plain functions of values, tested without a browser.
"""
