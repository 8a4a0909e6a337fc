"""Where a checkpoint comes from: a local folder, the Hugging Face hub, or the demo, and what it is."""
