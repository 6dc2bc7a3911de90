"""How a rank comes to be on an executor, takes its orders and answers: Spark's barrier task, and the rank's process."""
