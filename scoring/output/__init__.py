"""Forms of scores, and checks of outputs.

The schema of scored rows is `Settings.schema` in `scoring/task/scorer.py`.
"""
