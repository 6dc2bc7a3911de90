"""Values and connections that driver, executors and workers share; imports none of them."""
