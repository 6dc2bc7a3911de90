"""Files for orchestrators, to copy: a DAG of Airflow and a job of Databricks."""
