"""Modelyard: AI models as shared services on machines you own."""

__version__ = "0.1.0"
