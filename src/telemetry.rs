//! Metric names and the door through which figures leave (DESIGN section 7, "Metrics"). Label sets are closed: no DID and
//! no host name is ever a label. Without an installed recorder every call costs one atomic load.
