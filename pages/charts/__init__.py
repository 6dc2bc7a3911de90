"""Charts as SVG, small and in the colours of the page around them."""
