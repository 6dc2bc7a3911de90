"""Pages and plots: values in, figures and HTML out."""
