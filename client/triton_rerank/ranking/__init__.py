"""The computation of a call, without I/O: argument checks, texts of documents, chunks, batches, relevance scores."""
