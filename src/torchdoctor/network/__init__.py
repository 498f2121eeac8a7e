"""What is done to a network: read its logits, hook its layers, differentiate it, predict, check it."""
