"""What a call computes, without I/O: argument checks, texts of documents, chunks, batches, relevance scores."""
