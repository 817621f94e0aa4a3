// What the theme's own markup tells a screen reader wrongly, put right.
document.addEventListener("DOMContentLoaded", () => {
  // The name of a button must contain the text on it: where there is text, it is the name.
  for (const control of document.querySelectorAll("button[aria-label], summary[aria-label]")) {
    const label = control.getAttribute("aria-label");
    const shown = control.textContent.trim() !== "";
    if (!shown && !control.matches(".theme-switch-button")) continue; // an icon alone needs its label
    control.removeAttribute("aria-label");
    if (!control.textContent.toLowerCase().includes(label.toLowerCase())) {
      const hidden = document.createElement("span");
      hidden.className = "visually-hidden";
      hidden.textContent = `${label} `;
      control.prepend(hidden);
    }
  }
  // Citations carry roles that ARIA has dropped, in a list without the items it would need.
  for (const part of document.querySelectorAll("[role='doc-biblioentry'], .citation-list[role='list'], div.citation[role]")) {
    part.removeAttribute("role");
  }
  // All of the page belongs to a landmark.
  for (const header of document.querySelectorAll(".sidebar-header-items.sidebar-primary__section, .sidebar-primary-items__start")) {
    header.setAttribute("role", "navigation");
    header.setAttribute("aria-label", "Book and search");
  }
});
