"""Measuring scenes: pictures, attributes, bytes and seconds of files beside their original."""
