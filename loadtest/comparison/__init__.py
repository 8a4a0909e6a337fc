"""Other rerankers on the same machine, each in an environment of its own."""
