"""Problems with known answers, and measurements of quality and speed."""
