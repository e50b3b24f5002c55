// The theme's Font Awesome replaces <i> by <svg>; nested, the icons of notebook widgets keep working.
window.FontAwesomeConfig = {autoReplaceSvg: "nest"};
