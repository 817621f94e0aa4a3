// What the theme's own markup tells a screen reader wrongly, put right.
document.addEventListener("DOMContentLoaded", () => {
  // A label must contain what is to be read on the button: drop it where there is text, hide text where there is none.
  for (const control of document.querySelectorAll("button[aria-label], summary[aria-label]")) {
    const label = control.getAttribute("aria-label");
    const text = control.textContent.trim();
    if (text && !label.toLowerCase().includes(text.toLowerCase().split(/\s+/)[0])) {
      control.removeAttribute("aria-label");
      const hidden = document.createElement("span");
      hidden.className = "visually-hidden";
      hidden.textContent = ` (${label})`;
      control.append(hidden);
    } else if (text) {
      control.removeAttribute("aria-label");
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
