"""Pictures of what a backbone has learned."""

from __future__ import annotations

from passl_densecl.visualize.match import Matches, draw_matches, match_images

__all__ = ["Matches", "draw_matches", "match_images"]
