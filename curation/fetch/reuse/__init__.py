"""Images of earlier jobs and of img2dataset, taken by URL instead of being asked for again.

`source.py` reads what a source has, `index.py` sorts it by URL on disk, `join.py` looks every row of a segment up once,
`take.py` reads one image and checks that it is the one that was recorded.
"""
