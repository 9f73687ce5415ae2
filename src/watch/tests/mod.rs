mod cost;
mod schedules;
mod scripts;
mod world;
