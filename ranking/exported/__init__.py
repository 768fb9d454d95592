"""What an exported model is made of."""
