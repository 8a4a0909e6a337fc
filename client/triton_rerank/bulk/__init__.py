"""Bulk jobs: rows of a table with a query and its candidates in, ranked ids and scores out. Private; see `ray`."""
