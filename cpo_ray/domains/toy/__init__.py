"""The embedded painting domain: a small world in which the claims of the method can be checked without a download.

A program draws pictures whose quality attributes are known (`render`), another reads the attributes back from the pixels alone
(`agent`), a third judges content (`judge`), and a tiny pipeline of the real SDXL architecture is trained on them (`pretrain`).
"""
