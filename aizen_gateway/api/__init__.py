"""HTTP: routes, schemas, handlers by audience, and the table that turns failures into statuses."""
