"""Stage 3: tables of raw rows and annotations -> the ledger, one verdict for every input row.

Global and exact, in the order the recipe states. Select reads only the annotations of the recipe's own annotators and
settings; columns that another recipe left in the job are not seen.
"""
