"""What operators see and steer: metrics, health, admin routes, what runs beside requests."""
