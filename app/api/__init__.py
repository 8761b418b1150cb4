"""HTTP: routes, schemas, errors. Turns requests into calls on the services and records into JSON; decides nothing."""
