"""`iwm ui`: a web page on one's own machine, on which a world model can be tried by hand.

What a tab shows is computed by plain functions (`acting`, `undoing`), which know nothing of a browser;
`page` lays it out with gradio, `server` serves it.
"""
