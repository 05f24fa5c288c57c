"""The HTML report, one file without network.

``contents`` is what an artifact holds; ``charts`` are SVG; ``texts`` marks the words in which two
texts differ; ``page`` fills ``page.html.j2``; ``job`` is the verb.
"""
