"""Back ends, which answer questions about pictures: an endpoint, a local model."""
