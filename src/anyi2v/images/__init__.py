"""Reading, fitting, rendering and writing of condition images and videos."""
