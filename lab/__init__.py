"""A real control plane, small enough for a laptop: for tests, demonstrations and rehearsals."""
