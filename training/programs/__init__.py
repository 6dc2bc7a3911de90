"""The programs that ranks run: models, parameter servers, users' functions, and classical recommenders."""
