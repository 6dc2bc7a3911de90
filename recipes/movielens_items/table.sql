-- One row per rating: who rated which movie next, and what that user had rated before.
-- The last rating of every user is held back for the test, the one before it for the validation.
WITH interactions AS (
  SELECT
    CAST(userId AS STRING) AS user_id,
    CAST(movieId AS STRING) AS movie_id,
    rating,
    timestamp AS rated_at,
    row_number() OVER (PARTITION BY userId ORDER BY timestamp, movieId) AS position,
    count(*) OVER (PARTITION BY userId) AS ratings
  FROM ratings
),
with_history AS (
  SELECT
    *,
    collect_list(movie_id) OVER earlier AS watched
  FROM interactions
  WINDOW earlier AS (
    PARTITION BY user_id ORDER BY position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
  )
)
SELECT
  concat_ws('-', user_id, position) AS interaction_id,
  user_id,
  movie_id,
  rating,
  slice(watched, greatest(size(watched) - 49, 1), 50) AS recent_movies,
  -- What a user has watched is never recommended again; training does not need the list.
  CASE WHEN position >= ratings - 1 THEN watched ELSE array() END AS watched,
  CASE position WHEN ratings THEN 'test' WHEN ratings - 1 THEN 'validation' ELSE 'train' END AS split
FROM with_history
-- A user's first rating has no history to learn from.
WHERE position > 1
