"""Encoders that objectives train."""
