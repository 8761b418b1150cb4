"""Quantization-aware training: a QDQ graph in torch, trained and written back."""
