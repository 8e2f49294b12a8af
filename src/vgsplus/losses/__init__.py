"""What the network is trained on: masking, self-supervision and grounding."""
