"""Templates for orchestrators of fleets' runs: an Airflow DAG and a Databricks job."""
