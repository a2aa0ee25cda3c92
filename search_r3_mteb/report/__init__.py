"""Tables, figures and the page people look at; knows files, not models."""
