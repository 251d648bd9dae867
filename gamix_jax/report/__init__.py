"""`--mode=report`: one page about a trained model."""
