"""The functions of Kreflex, a folder each."""
