"""How weights lie on disk: written tensor by tensor, each in the narrowest type that is exact."""
