"""What the adapters for LangChain, LlamaIndex and Haystack share: clients and settings."""
