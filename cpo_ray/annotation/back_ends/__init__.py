"""Who answers: an endpoint, a local model."""
