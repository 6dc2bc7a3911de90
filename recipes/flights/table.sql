-- One row per flight that took place, with what is known of it before it departs.
-- Never here: dep_time, dep_delay, arr_time, air_time, which only the flight itself tells.
WITH hourly_weather AS (
  -- The hour that daylight saving repeats stands twice in the source; a plain join would double its flights.
  SELECT origin, time_hour,
         avg(temp) AS temp, avg(dewp) AS dewp, avg(humid) AS humid, avg(wind_dir) AS wind_dir,
         avg(wind_speed) AS wind_speed, avg(wind_gust) AS wind_gust, avg(precip) AS precip,
         avg(pressure) AS pressure, avg(visib) AS visib
  FROM weather
  GROUP BY origin, time_hour
),
scheduled AS (
  SELECT *,
         make_date(year, month, day) AS flight_date,
         sched_dep_time DIV 100 * 60 + sched_dep_time % 100 AS departure_minute,
         sched_arr_time DIV 100 * 60 + sched_arr_time % 100 AS arrival_minute
  FROM flights
)
SELECT * FROM (
SELECT
  concat_ws('-', date_format(s.flight_date, 'yyyyMMdd'), s.carrier, s.flight, s.origin) AS flight_id,
  s.carrier,
  concat(s.carrier, s.flight) AS flight,
  s.tailnum,
  s.origin,
  s.dest,
  concat(s.origin, '-', s.dest) AS route,
  p.manufacturer,
  p.model,
  date_format(s.flight_date, 'EEE') AS weekday,
  s.departure_minute DIV 60 AS hour,
  s.arrival_minute DIV 60 AS arrival_hour,
  -- Where this aircraft was scheduled to fly earlier that day, in order.
  collect_list(s.dest) OVER earlier_that_day AS previous_destinations,
  collect_list(s.carrier || '@' || (s.departure_minute DIV 60)) OVER earlier_that_day AS previous_departures,
  CAST(count(*) OVER same_hour AS INT) AS departures_this_hour,
  s.departure_minute,
  s.arrival_minute,
  s.distance,
  s.year - p.year AS plane_age,
  p.seats,
  a.lat AS dest_latitude,
  a.lon AS dest_longitude,
  a.alt AS dest_altitude,
  w.temp, w.dewp, w.humid, w.wind_dir, w.wind_speed, w.wind_gust, w.precip, w.pressure, w.visib,
  CASE WHEN s.arr_delay > 15 THEN 1 WHEN s.arr_delay IS NOT NULL THEN 0 END AS late,
  CASE WHEN s.month <= 9 THEN 'train' WHEN s.month = 10 THEN 'validation' ELSE 'test' END AS split
FROM scheduled s
LEFT JOIN planes p ON s.tailnum = p.tailnum
LEFT JOIN airports a ON s.dest = a.faa
LEFT JOIN hourly_weather w ON s.origin = w.origin AND s.time_hour = w.time_hour
WINDOW
  earlier_that_day AS (
    PARTITION BY s.tailnum, s.flight_date ORDER BY s.departure_minute, s.carrier, s.flight
    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
  ),
  same_hour AS (PARTITION BY s.origin, s.time_hour)
)
-- A cancelled flight has no outcome to learn, but it counts in the schedule above.
WHERE late IS NOT NULL
