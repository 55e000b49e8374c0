"""How micro and its siblings were trained."""
